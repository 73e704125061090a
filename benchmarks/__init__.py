"""What every quoted figure is reproduced with: ours and its peer side by side in one run."""
