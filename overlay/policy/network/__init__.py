"""Network policies: read from objects, compiled to a table, asked what they decide. All pure."""
