-- Run once by Postgres's superuser, on the new and empty data folder of docker-compose.yml's server.
--
-- One role for everything, which is no superuser and owns two databases: the pipeline's and Dagster's own.

\set ON_ERROR_STOP on
\getenv password POSTGRES_PASSWORD

-- A statement that fails is written into the log, and the next one holds the password.
SET log_min_error_statement = panic;
CREATE ROLE abo LOGIN PASSWORD :'password';
\unset password
RESET log_min_error_statement;

-- From template0: the image puts extensions into template1 that nobody needs here.
CREATE DATABASE abo OWNER abo TEMPLATE template0 ENCODING 'UTF8';
CREATE DATABASE dagster OWNER abo TEMPLATE template0 ENCODING 'UTF8';
REVOKE CONNECT, TEMPORARY ON DATABASE abo, dagster FROM PUBLIC;

-- From now on the superuser gets in from inside the container alone, through the socket.
ALTER ROLE CURRENT_USER PASSWORD NULL;

\connect abo
CREATE EXTENSION vector;
-- Another image may be without it; the pipeline works with vector alone.
SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vectorscale') AS vectorscale \gset
\if :vectorscale
CREATE EXTENSION vectorscale;
\endif
