"""Hold the Kubernetes manifests against their schemas and against our own rules.

`render` has kubectl make documents of a kustomization; everything else reads documents.
"""
