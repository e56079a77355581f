"""Will this run fit this card: predicted memory and time, part by part; what this machine has, and which presets fit it."""
