"""From text to typed, frozen, hashable configuration."""
