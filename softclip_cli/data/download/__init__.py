"""Images of a list of web addresses, fetched into tars as img2dataset lays them out; the extra `download`."""
