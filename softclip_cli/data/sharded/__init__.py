"""Training straight from tars or Parquet files: indexed once, then read at random places as a prepared corpus is."""
