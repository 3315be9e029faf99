-- The one way in which the serving role takes rows away: all events of a player (a pseudonym) with one NPC, or with
-- all of the world when p_npc is ''. It runs as the owner, and leaves a row of kind 9 (FORGET) that says how many there
-- were. Called again with the same time and id it deletes what has come since, and that row stays as it is.

CREATE FUNCTION public.npcd_forget(
    p_time timestamptz, p_id uuid, p_tenant text, p_world text, p_npc text, p_player text, p_timeline text
) RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    gone bigint;
BEGIN
    IF coalesce(p_player, '') = '' THEN
        RAISE EXCEPTION 'npcd_forget: which player?' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    DELETE FROM public.events
        WHERE tenant = p_tenant AND world = p_world AND player = p_player AND player <> '' AND kind <> 9
          AND (p_npc = '' OR npc = p_npc);
    GET DIAGNOSTICS gone = ROW_COUNT;
    INSERT INTO public.events (event_time, event_id, kind, tenant, world, npc, player, timeline, body)
        VALUES (p_time, p_id, 9, p_tenant, p_world, p_npc, p_player, p_timeline, jsonb_build_object('deleted', gone))
        ON CONFLICT DO NOTHING;
    -- Nothing is deleted without a row that says so: not under the time and id of another event.
    IF NOT EXISTS (
        SELECT FROM public.events
            WHERE event_time = p_time AND event_id = p_id AND kind = 9
              AND tenant = p_tenant AND world = p_world AND npc = p_npc AND player = p_player
    ) THEN
        RAISE EXCEPTION 'npcd_forget: % is another event', p_id USING ERRCODE = 'unique_violation';
    END IF;
    RETURN gone;
END
$$;

REVOKE ALL ON FUNCTION public.npcd_forget(timestamptz, uuid, text, text, text, text, text) FROM PUBLIC;
