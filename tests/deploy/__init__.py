"""What is deployed: the manifests and the compose file, as far as they can be checked quickly."""
