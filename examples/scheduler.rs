//! A tiny scheduler: runs each line of standard input as a shell command on a free GPU of its own,
//! as many at once as there are GPUs. It hands each claim to the command, so that the GPU stays
//! claimed until the command has ended, even if the scheduler is killed.

use autocvd::{Environment, NoObserver, Request, acquire};
use std::io::BufRead;
use std::process::Command;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let environment = Environment::read();
    let mut children = Vec::new();
    for line in std::io::stdin().lock().lines() {
        // Waits until a GPU is free: an earlier command may have to end first.
        let mut found = acquire(&Request::new(), &environment, &mut NoObserver)?;
        let mut command = Command::new("sh");
        let child = found.apply(command.arg("-c").arg(line?)).spawn()?;
        if let Some(claim) = found.claim.take() {
            claim.hand_to(&child)?;
        }
        children.push(child);
        // What has ended is reaped on the way.
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
    for mut child in children {
        child.wait()?;
    }
    Ok(())
}
