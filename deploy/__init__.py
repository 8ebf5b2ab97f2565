"""Checks of what is deployed: the wheel, the image, the manifests."""
