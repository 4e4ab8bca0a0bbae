"""Cluster files from a job: KubeRay, SLURM, ``ray up``, Docker, compose."""
