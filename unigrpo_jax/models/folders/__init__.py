"""Model folders on a disk or from the hub: their settings, tensors and adapters, in and out."""
