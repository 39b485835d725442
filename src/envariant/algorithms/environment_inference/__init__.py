"""What finds environments where none are given."""
