"""What makes spec/vectors/, and runs readers over them."""
