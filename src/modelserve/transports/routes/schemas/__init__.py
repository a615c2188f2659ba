"""What endpoints take and give, as JSON Schemas for /openapi.json. Only data."""
