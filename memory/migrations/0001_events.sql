-- What happened, a row an event. The serving role may add rows and nothing else; what is in `body` stands in
-- memory/records.py. `player` and whoever else a body names are pseudonyms (memory/archive.py).

CREATE TABLE public.events (
    event_time timestamptz NOT NULL,
    event_id   uuid        NOT NULL,
    kind       smallint    NOT NULL,
    tenant     text        NOT NULL,
    world      text        NOT NULL,
    npc        text        NOT NULL,
    player     text        NOT NULL,
    timeline   text        NOT NULL,
    body       jsonb       NOT NULL,
    PRIMARY KEY (event_time, event_id)
) PARTITION BY RANGE (event_time);

-- The months are made by `npcd migrate` every time it runs. What belongs to none of them is here until then.
CREATE TABLE public.events_default PARTITION OF public.events DEFAULT;

-- What an NPC went through, in order.
CREATE INDEX events_episodic ON public.events (tenant, world, npc, event_time);
-- Forgetting a player must not read a lifetime.
CREATE INDEX events_player ON public.events (tenant, world, player) WHERE player <> '';

-- Before PostgreSQL 15 everybody might make tables in public.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
