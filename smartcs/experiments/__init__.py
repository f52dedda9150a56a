"""The paper's tables as experiments: what each row is, running them all, and our figures beside the paper's."""
