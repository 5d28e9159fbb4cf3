"""The tests mirror the package. Postgres, files, images and Dagster are real; the model is the small bundled CLIP."""
