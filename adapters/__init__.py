"""Adapters: folders in PEFT's format with a manifest. No torch is imported here; library/ holds those that we ship."""
