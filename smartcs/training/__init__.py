"""Fine-tuning on the three tasks: configuration, optimizer, metrics, the trainer and what it writes."""
