// Worker that fetches a file and unpacks it if it is compressed.
onmessage = async ({ data: { number, url } }) => {
  try {
    const answer = await fetch(url);
    if (!answer.ok) {
      postMessage({ number, status: answer.status, text: await answer.text() });
      return;
    }
    const isPacked = new URL(url).pathname.endsWith(".gz");
    const stream = isPacked ? answer.body.pipeThrough(new DecompressionStream("gzip")) : answer.body;
    const content = await new Response(stream).arrayBuffer();
    postMessage({ number, content }, [content]);
  } catch (error) {
    postMessage({ number, fault: error.message });
  }
};
