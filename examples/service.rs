//! A service that finds GPUs for clients and drops a request whose client has gone.
//!
//! Each line of standard input is a command: `get NAME NUM_GPUS` asks for GPUs, `cancel NAME` ends
//! that request or gives its GPUs back. What happens is printed as it happens, in whatever order it
//! happens: each request waits on a thread of its own.

use autocvd::{CancelToken, Environment, Error, NoObserver, Request, acquire};
use std::collections::HashMap;
use std::io::BufRead;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// A client's request: its end is asked for by the token, its claim by closing the channel.
struct Client {
    token: CancelToken,
    _keeps_the_claim: Sender<()>,
    thread: JoinHandle<()>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut clients: HashMap<String, Client> = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["get", name, num_gpus] => {
                let client = serve(name.to_owned(), num_gpus.parse()?)?;
                clients.insert(name.to_owned(), client);
            }
            ["cancel", name] => {
                if let Some(client) = clients.remove(name) {
                    end(client);
                }
            }
            _ => println!("not understood: {line}"),
        }
    }
    clients.into_values().for_each(end);
    Ok(())
}

fn serve(name: String, num_gpus: usize) -> std::io::Result<Client> {
    let token = CancelToken::new()?;
    let request = Request::new().num_gpus(num_gpus).cancelled_by(&token);
    let (keeps, released) = channel();
    let thread = std::thread::spawn(move || wait_and_hold(&name, &request, &released));
    Ok(Client {
        token,
        _keeps_the_claim: keeps,
        thread,
    })
}

fn wait_and_hold(name: &str, request: &Request, released: &Receiver<()>) {
    match acquire(request, &Environment::read(), &mut NoObserver) {
        Ok(found) => {
            println!("{name}: CUDA_VISIBLE_DEVICES={}", found.ids.join(","));
            // Held until the client goes.
            let _ = released.recv();
            println!("{name}: released");
        }
        Err(Error::Cancelled) => println!("{name}: cancelled"),
        Err(error) => println!("{name}: {error}"),
    }
}

fn end(client: Client) {
    let Client {
        token,
        _keeps_the_claim,
        thread,
    } = client;
    token.cancel();
    drop(_keeps_the_claim);
    let _ = thread.join();
}
