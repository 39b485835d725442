"""Environment inference: methods that infer training environments before training."""
