"""Words for the calls whose stretches on the event loop are measured (loadtests/bench/pauses_calls.py)."""

from __future__ import annotations

from collections.abc import Mapping

CALLS: Mapping[str, str] = {
    "define_world": "DefineWorld: 4,096 personas, 64 archetypes, 64 actions, 512 rows of policy",
    "register": "Register of 10,000 inline personas",
    "register_again": "the same once more, which changes nothing",
    "take_over": "the same with take_over, while two streams watch",
    "redefine_world": "DefineWorld with another lore, 10,000 NPCs registered",
    "register_not_utf8": "Register of 10,000, the last text not UTF-8",
    "live_frames": "ten frames of 1,000 observations on one stream, and what follows",
    "live_end": "that stream's end",
    "live_first_frame": "Live's first frame with 10,000 intents",
    "observe": "Observe of 1,000",
    "watch_first_frame": "Intents.Watch's first frame with 10,000 intents",
    "watch_ids": "the same for 10,000 named NPCs",
    "get": "Intents.Get of the whole world",
    "get_ids": "Intents.Get of 1,000 named NPCs",
    "describe": "Describe of the whole world with history",
    "describe_unknown": "Describe of 10,000 ids that nobody knows",
    "set_cards": "SetCards for 10,000 pairs, 20 at once",
    "talk": "Talk: 40 turns, one after the other",
    "recall": "Recall of a pair in process",
    "end_session": "EndSession of these conversations",
    "status": "Admin.Status after a load",
    "healthz": "/healthz after a load",
    "metrics": "/metrics after a load",
    "checkpoint": "Checkpoint",
    "export": "Export",
    "restore": "Restore",
    "import": "Import of that export into the same world",
    "forget": "Forget of one player by the whole world",
    "tidy": "the garbage collections of three minutes",
    "house": "the jobs of every second, for three seconds, idle",
    "restart": "a new start: 10,000 NPCs taken up again",
    "import_new": "Import into a daemon that has no such world",
    "remove": "Remove of 10,000",
    "delete_world": "DeleteWorld with 10,000 NPCs",
    "list": "ListWorlds and ListCheckpoints",
}
