"""What is read of a Kubernetes cluster: pods, pools and what is ruled for them, by list and watch.

The objects are read with msgspec, and only what is needed of each is ever built: a pod of 8 KB
takes 26 us, and 1 KB is kept. kubernetes_asyncio reads kubeconfig files, and knows who we are
there; it is imported when there is such a file, since it takes 38 MB and 0.3 s. In a pod nothing
of it is needed.
"""
