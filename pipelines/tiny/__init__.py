"""Small trained pipelines that ship with the package, and the code that made them."""
