"""Code that runs inside the sandbox, apart from all else."""
