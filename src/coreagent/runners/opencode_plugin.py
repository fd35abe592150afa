"""What makes opencode give up in seconds: a plugin of ours that ends it after its second try again.

1.18.33 tries five times, after 2 to 30 seconds each, or for as long as a server says, and has no setting, variable or
flag for it; it tells of a try only its plugins. The plugin says how the turn ended in the words of `run --format json`
(opencode_stream reads them), or as an extension of the protocol (acp_stream does), and ends the process.
"""

from __future__ import annotations

from typing import Final

GAVE_UP: Final = "_core_agent/gave_up"
"""The notification that stands for the answer to the prompt."""
PATIENCE_S: Final = 30
"""A server that asks for more is not waited for: the limit has an end, and the queue can wait for it."""
SOURCE: Final = """// Written by core-agent before each turn.
import { writeSync } from "node:fs"

const HEADERS = ["retry-after", "retry-after-ms"]

export const CoreAgent = async () => {
  const children = new Set()
  let refused = {}
  const real = globalThis.fetch
  // Of a try that failed opencode tells the text alone; the status and the time of a reset are in the answer.
  const watched = async (...given) => {
    refused = {}
    const answer = await real(...given)
    if (answer.status >= 400) {
      const named = HEADERS.filter((name) => answer.headers.has(name)).map((name) => [name, answer.headers.get(name)])
      refused = { statusCode: answer.status, responseHeaders: Object.fromEntries(named) }
    }
    return answer
  }
  globalThis.fetch = Object.assign(watched, real)
  const say = (message) => {
    try {
      writeSync(1, JSON.stringify(message) + "\\n")
    } catch {}
    process.exit(1)
  }
  return {
    event: async ({ event }) => {
      if (event.type === "session.created" && event.properties.info?.parentID) children.add(event.properties.info.id)
      const { sessionID, status } = event.properties
      if (event.type !== "session.status" || status.type !== "retry" || children.has(sessionID)) return
      if (status.attempt < 3 && status.next - Date.now() < PATIENCE_MS) return
      const error = { name: "APIError", data: { message: status.message, ...refused } }
      const params = { sessionId: sessionID, error }
      if (process.argv.includes("acp")) say({ jsonrpc: "2.0", method: "GAVE_UP", params })
      say({ type: "error", timestamp: Date.now(), sessionID, error })
    },
  }
}
""".replace("PATIENCE_MS", str(PATIENCE_S * 1000)).replace("GAVE_UP", GAVE_UP)
