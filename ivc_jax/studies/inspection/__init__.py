"""What methods would keep of one prompt at other layers and keep ratios, and why."""
