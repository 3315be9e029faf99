"""One NPC thinks and speaks. Start a daemon (`npcd serve`), then: python ten_lines.py [unix:///path | host:port]"""

import asyncio
import sys

from npcd_client import ActionWord, Archetype, Client, NpcdError, NpcSpec, Observation, Percept, Persona, World

INN = World(
    world_id="inn",
    lore="The inn of Ravenmere stands by the old road. Mayor Greta rules here. People fear wolves.",
    archetypes=(Archetype("villager", "Plain folk. Works by day, greets friends, flees from monsters."),),
    actions=(ActionWord("idle"), ActionWord("greet", needs_target=True, speaks=True), ActionWord("flee")),
    emotions=("calm", "happy", "afraid"),
    personas=(Persona("mira", "Mira", "Innkeeper of the tavern. Your brother is Otto. You fear wolves."),),
)


async def main(target: str) -> None:
    async with Client(target) as npcd:
        await npcd.wait_ready()
        await npcd.define_world(INN)
        await npcd.register([NpcSpec("mira-1", "villager", "mira")], take_over=True)
        async with npcd.live() as live:
            live.observe(
                Observation("mira-1", tick=1, place="tavern", percepts=(Percept("you", "player", "friendly", 3),))
            )
            while (intent := live.latest("mira-1")) is None:  # noqa: ASYNC110 (a game draws its next frame here)
                await asyncio.sleep(0.005)
            print(f"Mira: {intent.action} {intent.target_entity_id} ({intent.emotion}) {intent.bark}")
        async for event in npcd.talk("mira-1", "you", "What are you afraid of?"):
            print(event.text, end="", flush=True)
        print()


if __name__ == "__main__":
    where = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50061"
    try:
        asyncio.run(main(where))
    except NpcdError as error:
        sys.exit(f"{where}: {error}\nIs npcd serving there? Start it with `npcd serve`.")
    except KeyboardInterrupt:
        sys.exit(130)
