"""An NPC remembers, goes back to a save, and forgets. Start `npcd serve`, then: python remembering.py [target]"""

import asyncio
import sys

from npcd_client import ActionWord, Archetype, Client, NpcdError, NpcSpec, Persona, QuestCard, RelationshipCard, World

INN = World(
    world_id="inn",
    lore="The inn of Ravenmere stands by the old road. Mayor Greta rules here. People fear wolves.",
    archetypes=(Archetype("villager", "Plain folk. Works by day, greets friends, flees from monsters."),),
    actions=(ActionWord("idle"), ActionWord("greet", needs_target=True, speaks=True), ActionWord("flee")),
    emotions=("calm", "happy", "afraid"),
    personas=(Persona("mira", "Mira", "Innkeeper of the tavern. Your brother is Otto. You fear wolves."),),
)


async def say(npcd: Client, line: str) -> None:
    print(f"> {line}")
    async for event in npcd.talk("mira-1", "you", line):
        print(event.text, end="", flush=True)
    print()


async def main(target: str) -> None:
    async with Client(target) as npcd:
        await npcd.wait_ready(3)
        await npcd.define_world(INN)
        await npcd.register([NpcSpec("mira-1", "villager", "mira")], take_over=True)
        quest = QuestCard(active=["Quest: find the silver key."])
        await npcd.set_cards("mira-1", "you", relationship=RelationshipCard(trust=0.8), quest=quest)
        await npcd.checkpoint("before")
        await say(npcd, "My name is Corvessa. I lost my green lantern at the old ferry.")
        await say(npcd, "What did I lose?")
        print(await npcd.recall("mira-1", "you"))  # cards, facts, summaries, mood
        await npcd.restore("before")  # nobody remembers what was said since
        await say(npcd, "What did I lose?")
        await npcd.forget("you")  # in every store


if __name__ == "__main__":
    where = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50061"
    try:
        asyncio.run(main(where))
    except NpcdError as error:
        sys.exit(f"{where}: {error}\nIs npcd serving there? Start it with `npcd serve`.")
    except KeyboardInterrupt:
        sys.exit(130)
