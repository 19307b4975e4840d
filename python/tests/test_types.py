"""Types, and the logger: what tools see of the package."""

import json
import os
import unittest

from machine import MachineTest

SCHEMA = os.path.join(os.path.dirname(__file__), "..", "..", "schema", "status.schema.json")


class Types(MachineTest):
    GPUS = 2

    def test_annotations_can_be_resolved(self):
        script = """
            import typing, autocvd
            from autocvd.types import Status
            for function in (autocvd.autocvd, autocvd.acquire_async, autocvd.gpus.__init__, autocvd.status):
                hints = typing.get_type_hints(function)
                say(function.__name__, sorted(hints)[:2], len(hints))
            say(typing.get_type_hints(autocvd.autocvd)["return"] is autocvd.Allocation)
            say(typing.get_type_hints(autocvd.status)["return"] is Status)
        """
        lines = [
            "autocvd ['claim', 'exclude'] 14",
            "acquire_async ['claim', 'exclude'] 14",
            "__init__ ['claim', 'exclude'] 14",
            "status ['return'] 1",
            "True",
            "True",
        ]
        self.assertEqual(self.run_script(script), lines)

    def test_the_types_of_status_are_those_of_its_schema(self):
        with open(SCHEMA) as file:
            schema = json.load(file)
        names = {
            name[0].upper() + name[1:]: one
            for name, one in schema["$defs"].items()
            if "properties" in one
        }
        names["Status"] = schema
        fields = {
            name: [sorted(one["properties"]), sorted(one.get("required", []))]
            for name, one in names.items()
        }
        script = f"""
            import autocvd.types as types
            for name, (properties, required) in {fields!r}.items():
                one = getattr(types, name)
                optional = one.__optional_keys__
                if sorted(one.__required_keys__) != required or not set(properties) - set(required) <= optional:
                    say(name, properties, sorted(optional), required, sorted(one.__required_keys__))
        """
        self.assertEqual(self.run_script(script), [])


class Logger(MachineTest):
    GPUS = 3

    SCRIPT = """
        import logging
        logging.basicConfig(level=logging.{level}, stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
        from autocvd import autocvd
        autocvd({arguments})
    """

    def logged(self, level, arguments=""):
        return self.run_script(self.SCRIPT.format(level=level, arguments=arguments))

    def test_it_is_told_what_was_chosen(self):
        self.assertEqual(self.logged("INFO"), ["INFO autocvd chose GPU 2: CUDA_VISIBLE_DEVICES=2"])
        self.assertEqual(self.logged("WARNING"), [])

    def test_it_is_told_why_others_were_passed_over(self):
        self.job(2)
        chose, *others = self.logged("DEBUG", "exclude=1")
        self.assertEqual(chose, "INFO autocvd chose GPU 0: CUDA_VISIBLE_DEVICES=0")
        self.assertEqual(len(others), 2, others)
        self.assertEqual(
            others[0], "DEBUG autocvd passed over GPU 1: not among those to choose from"
        )
        self.assertRegex(others[1], "^DEBUG autocvd passed over GPU 2: .*sleep 600")

    def test_it_is_told_what_is_waited_for_whatever_is_printed(self):
        jobs = [self.job(gpu) for gpu in range(3)]
        waiter = self.start(self.SCRIPT.format(level="INFO", arguments="verbose=False"))
        line = waiter.hear()
        self.assertTrue(line.startswith("INFO autocvd waiting for a GPU; 0 of 3 free"), line)
        self.assertIn("sleep 600", line)
        for job in jobs:
            job.kill()
            job.wait()
        out, err = waiter.end()
        self.assertRegex(out, "INFO autocvd chose GPU . *")
        self.assertEqual(err, "")

    def test_what_is_not_imported_is_not_told(self):
        script = """
            from autocvd import autocvd
            autocvd()
            say("logging" in sys.modules)
        """
        self.assertEqual(self.run_script(script), ["False"])


if __name__ == "__main__":
    unittest.main()
