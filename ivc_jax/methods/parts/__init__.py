"""Steps of single methods, one file a step; what several methods share lies a folder up."""
