"""From prepared acquisitions, or a table, to labelled spectra and their splits."""
