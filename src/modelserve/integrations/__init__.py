"""Ways into frameworks that the library itself does without. Import the one you use."""
