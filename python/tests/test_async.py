"""asyncio: other tasks run meanwhile, and cancelling takes nothing."""

import unittest

from machine import MachineTest

PRELUDE = """
import asyncio, autocvd
def states():
    return [gpu["state"] for gpu in autocvd.status()["gpus"]]
"""


class Async(MachineTest):
    GPUS = 3

    def run_async(self, body, **options):
        import textwrap

        script = (
            PRELUDE
            + "async def main():\n"
            + textwrap.indent(textwrap.dedent(body), "    ")
            + "\nasyncio.run(main())"
        )
        return self.run_script(script, **options)

    def test_awaiting_it_gives_the_allocation(self):
        body = """
            g = await autocvd.acquire_async(2)
            say(g, type(g).__name__, os.environ["CUDA_VISIBLE_DEVICES"])
            other = await autocvd.autocvd.acquire_async(set_env=False)
            say(other, states())
            autocvd.release()
            say(states())
            async with autocvd.gpus(2) as g:
                say(g, states(), os.environ["CUDA_VISIBLE_DEVICES"])
            say(states(), os.environ["CUDA_VISIBLE_DEVICES"])
            async with await autocvd.acquire_async() as g:
                say(g, os.environ["CUDA_VISIBLE_DEVICES"])
            say(states())
        """
        free = "['free', 'free', 'free']"
        two = "['free', 'claimed', 'claimed']"
        lines = ["[1, 2] Allocation 1,2", "[0] ['claimed', 'claimed', 'claimed']", free]
        lines += [f"[1, 2] {two} 1,2", f"{free} 1,2", "[2] 2", free]
        self.assertEqual(self.run_async(body), lines)

    def test_other_tasks_run_meanwhile(self):
        jobs = [self.job(gpu) for gpu in range(3)]
        running = self.start(
            PRELUDE
            + """
async def main():
    task = asyncio.create_task(autocvd.acquire_async(interval=3600))
    while not task.done():
        await asyncio.sleep(0.01)
        say("tick")
    say(task.result())
asyncio.run(main())
"""
        )
        self.assertEqual([running.hear() for _ in range(20)], ["tick"] * 20)
        jobs[1].kill()
        jobs[1].wait()
        out, err = running.end()
        self.assertEqual(out.splitlines()[-1], "[1]", err)

    def test_cancelling_ends_the_wait_and_takes_nothing(self):
        jobs = [self.job(gpu) for gpu in range(3)]
        body = """
            for take in (lambda: autocvd.acquire_async(interval=3600), autocvd.gpus(interval=3600).__aenter__):
                waits = asyncio.Event()
                task = asyncio.create_task(take())
                await asyncio.sleep(0.3)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    say("cancelled", "CUDA_VISIBLE_DEVICES" in os.environ)
            try:
                await asyncio.wait_for(autocvd.acquire_async(), 0.2)
            except asyncio.TimeoutError:
                say("not in time")
        """
        running = self.start(
            PRELUDE
            + "async def main():\n"
            + body
            + "\n            say('go')\n            listen()\n"
            "            say(states())\n            g = await autocvd.acquire_async(3)\n            say(g)\nasyncio.run(main())"
        )
        self.assertEqual(
            [running.hear() for _ in range(4)], ["cancelled False"] * 2 + ["not in time", "go"]
        )
        for job in jobs:
            job.kill()
            job.wait()
        running.tell()
        self.assertEqual(running.hear(), "['free', 'free', 'free']")
        self.assertEqual(running.hear(), "[0, 1, 2]")

    def test_a_driver_that_hangs_holds_up_no_task(self):
        self.describe(gpus=[{}], init={"delay_ms": 3600_000})
        body = """
            task = asyncio.create_task(autocvd.acquire_async())
            await asyncio.sleep(0.3)
            task.cancel()
            say(*[type(one).__name__ for one in await asyncio.gather(task, return_exceptions=True)])
            try:
                await autocvd.acquire_async(timeout=1.2)
            except TimeoutError as error:
                say(type(error).__name__)
        """
        self.assertEqual(self.run_async(body), ["CancelledError", "GpuTimeoutError"])

    def test_tasks_have_their_own_gpus_and_share_the_environment(self):
        body = """
            async def met(count, reached):
                # How soon the others come is the machine's affair.
                seen.append(count)
                if len(seen) >= count:
                    reached.set()
                await asyncio.wait_for(reached.wait(), 150)
            seen, three = [], asyncio.Event()
            async def work():
                async with autocvd.gpus(set_env=False, verbose=False) as g:
                    await met(3, three)
                    return g.visible_devices
            say(sorted(set(await asyncio.gather(*[work() for _ in range(12)]))))
            seen, everyone = [], asyncio.Event()
            async def careless():
                try:
                    async with autocvd.gpus(verbose=False) as g:
                        await met(3, everyone)
                        return os.environ["CUDA_VISIBLE_DEVICES"] == g.visible_devices
                except RuntimeError as error:
                    await met(3, everyone)
                    return "set_env=False" in str(error) and "refused"
            got = await asyncio.gather(*[careless() for _ in range(3)])
            say(got.count(True), got.count("refused"), "CUDA_VISIBLE_DEVICES" in os.environ)
        """
        self.assertEqual(self.run_async(body), ["['0', '1', '2']", "1 2 False"])


if __name__ == "__main__":
    unittest.main()
