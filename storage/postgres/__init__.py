"""PostgreSQL: the same tables on a server, for several processes at once. Alone in knowing psycopg."""
