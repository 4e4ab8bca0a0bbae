"""The service: jobs of many people on many clusters, over HTTP. It runs outside the clusters that it hands jobs to."""
