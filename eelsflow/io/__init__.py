"""Files in and out: microscope formats (`eelsflow.io.read`) and zarr stores (`eelsflow.io.zarr_store`)."""
