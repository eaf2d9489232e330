"""What cells a model needs: packed questions put to it while cells are hidden."""
