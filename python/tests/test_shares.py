"""Shares of a GPU's memory, beside those of other launches."""

from machine import MachineTest

GIB = 1 << 30


class Shares(MachineTest):
    GPUS = 1

    def test_shares_go_on_one_gpu_and_tell_their_size(self):
        script = """
            from autocvd import autocvd
            g = autocvd(share=True, min_free_memory="30GiB", timeout=0)
            say(g, os.environ["AUTOCVD_MEMORY"], g.env["AUTOCVD_MEMORY"])
            listen()
            """
        holders = [self.start(script) for _ in range(2)]
        for holder in holders:
            self.assertEqual(holder.hear(), f"[0] {30 * GIB} {30 * GIB}")
        self.assertEqual(self.free(), [])
        refused = self.program("-t", "0", "--share", "-m", "30GiB")
        self.assertEqual(refused.returncode, 4, refused.stderr)
        holders[0].end()
        allowed = self.program("-t", "0", "-o", "--share", "-m", "30GiB")
        self.assertEqual(allowed.stdout, "0\n", allowed.stderr)

    def test_a_share_is_not_a_whole_gpu_and_the_variable_goes_with_it(self):
        lines = self.run_script(
            """
            import autocvd
            one = autocvd.autocvd(share=True, min_free_memory=5 << 30, timeout=0)
            again = autocvd.autocvd(share=True, min_free_memory=5 << 30, timeout=0)
            say(one is again)
            whole = autocvd.autocvd(timeout=0)
            say(whole is one, "AUTOCVD_MEMORY" in os.environ)
            """
        )
        self.assertEqual(lines, ["True", "False False"])

    def test_a_child_has_its_share_of_the_share(self):
        lines = self.run_script(
            """
            import subprocess
            from autocvd import autocvd
            g = autocvd(share=True, min_free_memory="8GiB")
            for line in (["-m", "3GiB", "--share"], [], ["-m", "9GiB"]):
                words = ["autocvd", "-q", "-t", "90", *line, "--", "printenv", "AUTOCVD_MEMORY"]
                done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
                say(done.returncode, done.stdout.strip())
            """
        )
        self.assertEqual(lines, [f"0 {3 * GIB}", f"0 {8 * GIB}", "3 "])

    def test_a_share_needs_its_size(self):
        for arguments in ("share=True", "share=True, min_free_memory=0", "share='yes'"):
            lines = self.run_script(
                f"""
                from autocvd import autocvd
                try:
                    autocvd({arguments})
                except ValueError as error:
                    say(error)
                """
            )
            self.assertEqual(len(lines), 1)
            self.assertIn("share=", lines[0])

    def test_a_share_that_is_larger_than_any_gpu_is_a_wrong_value(self):
        lines = self.run_script(
            """
            from autocvd import autocvd
            try:
                autocvd(share=True, min_free_memory="81GiB")
            except ValueError as error:
                say(error)
            """
        )
        self.assertIn("share=", lines[0])
