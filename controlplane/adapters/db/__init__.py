"""The store on SQLite and PostgreSQL. Tables and rows stay inside; values of the domain come out."""
