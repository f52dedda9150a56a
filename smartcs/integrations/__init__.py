"""SMART and Bregman for models of other libraries. `smartcs.integrations.transformers` is for Hugging Face."""
