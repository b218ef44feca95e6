"""What doctors, patients and readers run: records in and out, keys, requests. Imports only `crypto` and `protocol`."""
