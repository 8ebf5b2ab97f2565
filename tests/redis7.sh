#!/bin/sh
# Unpack Debian's Redis 7.0 into ~/.cache/kvatlas/redis-7.0, for the tests that need one.
# Nothing is installed. Needs apt-get and dpkg.
set -eu
home=${1:-$HOME/.cache/kvatlas/redis-7.0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download redis-server redis-tools libjemalloc2 liblzf1
mkdir -p "$home"
for package in *.deb; do dpkg -x "$package" "$home"; done
cat > "$home/redis-server" <<'SH'
#!/bin/sh
here=$(dirname "$0")
for folder in "$here"/usr/lib/*-linux-gnu; do libraries=$folder; done
LD_LIBRARY_PATH=$libraries exec "$here/usr/bin/redis-server" "$@"
SH
chmod +x "$home/redis-server"
"$home/redis-server" --version
