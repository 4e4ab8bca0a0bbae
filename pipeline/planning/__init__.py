"""Planning: what a job will make, take and cost, before anything runs."""
