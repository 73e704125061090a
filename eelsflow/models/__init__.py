"""Support vector machines and networks behind one interface."""
