"""How Headworks is started: the command line, submission to a cluster, the entry point of submitted jobs."""
