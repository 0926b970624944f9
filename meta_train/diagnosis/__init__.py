"""What is known of a problem before it is meta-trained on."""
