//! A status line that another thread keeps up to date.
//!
//! `status_screen [FILE] [LOOKS]`: reads the machine, or FILE, so many times (1 unless told), and
//! prints a line a look.

use autocvd::{Environment, NoObserver, ProbeChoice, Snapshot, State, StatusReader};
use std::sync::mpsc::channel;
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let choice = arguments
        .next()
        .map_or(ProbeChoice::Auto, |file| ProbeChoice::File(file.into()));
    let looks: usize = arguments.next().map_or(Ok(1), |looks| looks.parse())?;
    let mut reader = StatusReader::open(&choice, &Environment::read(), &mut NoObserver)?;
    let (send, snapshots) = channel();
    // The driver may take its time: this thread can show something else meanwhile.
    let thread = std::thread::spawn(move || {
        for look in 0..looks {
            if look > 0 {
                std::thread::sleep(Duration::from_secs(1));
            }
            if send.send(reader.look(&mut NoObserver)).is_err() {
                break;
            }
        }
    });
    for snapshot in snapshots {
        println!("{}", line(&snapshot?));
    }
    thread.join().map_err(|_| "the reading thread panicked")?;
    Ok(())
}

fn line(snapshot: &Snapshot) -> String {
    let cell = |device: autocvd::Device| match device.state() {
        Some(State::Free) => format!("{} free", device.label()),
        Some(State::Claimed) => format!("{} claimed", device.label()),
        Some(State::Unavailable) => format!("{} unavailable", device.label()),
        _ => format!("{} busy", device.label()),
    };
    snapshot.devices().map(cell).collect::<Vec<_>>().join(" | ")
}
