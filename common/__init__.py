"""What every process of Gugus shares. Imports none of the other packages."""
